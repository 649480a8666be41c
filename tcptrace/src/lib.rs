//! tcptrace: which process, which flow and why, for every TCP socket error on this host.

pub mod cli;
pub mod config;
pub mod decode;
pub mod diagnose;
pub mod event;
pub mod explain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod host;
pub mod kernel;
pub mod manual;
pub mod metrics;
pub mod replay;
pub mod run;
pub mod selftest;
pub mod session;
pub mod sink;
pub mod source;
