//! tcptrace: which process, which flow and why, for every TCP socket error on this host.

pub mod diagnose;
pub mod event;
pub mod sink;
