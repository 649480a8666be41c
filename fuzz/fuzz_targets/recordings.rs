//! Feeds `tcptrace::fuzz::recordings`, which says what it reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tcptrace::fuzz::recordings(bytes));
