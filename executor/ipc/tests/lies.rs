//! A peer that lies in shared memory spoils what is in it, and nothing else: no panic, no hang. The fuzzer's function
//! (`common/lies.rs`), over random inputs.
#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "common/lies.rs"]
mod lies;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const INPUTS: usize = 2_400;

/// An input takes milliseconds; one that takes that long doesn't end.
const LIMIT: Duration = Duration::from_secs(20);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// The input of that number, every kind of object in turn: mostly operations and single numbers, as random bytes would
/// mostly spoil the head.
fn input(number: usize) -> Vec<u8> {
    let mut random = Random(number as u64);
    let kinds = usize::from(lies::KINDS);
    let kind = (number % kinds) as u8 | ((number / kinds % 2) as u8) << 7;
    let mut bytes = vec![kind];
    for _ in 0..random.next() % 30 {
        let [command, low, high, ..] = random.next().to_le_bytes();
        match random.next() % 8 {
            0..=3 => bytes.push(0x80 | command),
            4 => bytes.extend([command & 0x5f, low, high].into_iter().chain(random.next().to_le_bytes())),
            // Near the beginning, where the words are that matter most.
            5 => bytes.extend([0x20 | command & 0x1f, low, high & 1]),
            6 => bytes.extend([0x20 | command & 0x7f, low, high & 3]),
            _ => bytes.extend([0x20 | command & 0x7f, low, high]),
        }
    }
    bytes
}

#[test]
fn lies_cost_what_they_are_about() {
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static OVER: AtomicUsize = AtomicUsize::new(0);
    // What the locks say is part of what is lied about, so their places have to be right.
    lies::word_of_ours();
    std::thread::spawn(|| {
        let mut seen = (usize::MAX, Instant::now());
        while OVER.load(Ordering::Relaxed) == 0 {
            let now = NOW.load(Ordering::Relaxed);
            if now != seen.0 {
                seen = (now, Instant::now());
            } else if seen.1.elapsed() > LIMIT {
                eprintln!("input {now} does not end: {:02x?}", input(now));
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    for number in 0..INPUTS {
        NOW.store(number, Ordering::Relaxed);
        let bytes = input(number);
        if catch_unwind(AssertUnwindSafe(|| lies::memory(&bytes))).is_err() {
            panic!("input {number} makes it panic: {bytes:02x?}");
        }
    }
    OVER.store(1, Ordering::Relaxed);
}
