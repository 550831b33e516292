//! A table that nobody should write, with commas and with tabs.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fetch::fuzzing::csv(input));
