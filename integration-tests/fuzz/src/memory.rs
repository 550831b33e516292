//! A peer that writes what it likes over the memory of shared objects.
#![no_main]

#[path = "../../../executor/ipc/tests/common/lies.rs"]
mod lies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| lies::memory(input));
