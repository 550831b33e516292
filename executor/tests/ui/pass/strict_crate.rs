//! A program that forbids `unsafe` and denies every warning can use both macros.
#![forbid(unsafe_code)]
#![deny(warnings, missing_docs, missing_debug_implementations, missing_copy_implementations, unreachable_pub)]
#![deny(unused_qualifications, unused_results, unused_lifetimes, single_use_lifetimes, rust_2018_idioms)]

/// Whether `n` is prime.
#[polypool::task]
pub fn is_prime(n: u64) -> bool {
    n >= 2 && (2..n).all(|d| n % d != 0)
}

/// The length of a text, some time later.
#[polypool::task]
pub async fn length(text: String) -> usize {
    std::future::ready(text.len()).await
}

/// Nothing.
#[polypool::task]
#[deprecated = "it does nothing"]
pub fn nothing(_unused: u8) {}

/// Does what it says.
#[polypool::main]
async fn main() {
    use std::mem::drop;

    assert!(is_prime(7));
    assert_eq!(length("seven".to_owned()).await, 5);
    drop((is_prime { n: 7 }, length { text: "seven".to_owned() }));
}
