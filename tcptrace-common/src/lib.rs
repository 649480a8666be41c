//! The wire between the kernel half and the agent: records, map values and load-time constants.
//!
//! Integers and byte arrays only, with explicit padding: meaning is added by the agent's `decode`.
#![no_std]

pub mod event;
pub mod filter;
pub mod layout;
