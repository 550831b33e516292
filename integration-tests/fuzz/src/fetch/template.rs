//! URLs that stand for several, and ranges that nobody can count.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fetch::fuzzing::template(input));
