//! A program with two tasks of one name.
#![forbid(unsafe_code)]

#[polypool::task(name = "twice")]
fn first(n: u64) -> u64 {
    n
}

#[polypool::task(name = "twice")]
fn second(n: u64) -> u64 {
    n + 1
}

#[polypool::main]
fn main() {
    println!("{} {}", first(1), second(1));
}
