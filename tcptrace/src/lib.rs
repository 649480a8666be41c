//! tcptrace: which process, which flow and why, for every TCP socket error on this host.

pub mod event;
pub mod selftest;
