//! A config file that nobody should write.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fetch::fuzzing::config(input));
