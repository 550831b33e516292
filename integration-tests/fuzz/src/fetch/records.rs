//! Records of an earlier run that no run has written.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fetch::fuzzing::records(input));
