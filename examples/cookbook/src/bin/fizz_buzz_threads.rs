//! `threading.Thread`: the five jobs of `fizz_buzz_sequential` at once, so that the shortest, the last, ends first.
//!
//! A scope joins its threads at its end, so they may borrow.

use std::thread;
use std::time::Instant;

fn fizz_buzz(n: u64) -> &'static str {
    match (n % 3, n % 5) {
        (0, 0) => "fizz buzz",
        (0, _) => "fizz",
        (_, 0) => "buzz",
        _ => "",
    }
}

fn job(number: u64, since: Instant) {
    println!("job {number}: start");
    let start = Instant::now();
    let words = (1..=(6 - number) * 200_000).filter(|n| !fizz_buzz(*n).is_empty()).count();
    let (own, total) = (start.elapsed().as_millis(), since.elapsed().as_millis());
    println!("job {number}: end, {words} words, {own} ms, {total} ms since the beginning");
}

fn main() {
    let since = Instant::now();
    thread::scope(|scope| {
        for number in 1..=5 {
            scope.spawn(move || job(number, since));
        }
    });
    println!("all in {} ms", since.elapsed().as_millis());
}
