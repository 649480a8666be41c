//! tcptrace
pub mod decode;
pub mod event;
pub mod kernel;
pub mod source;
