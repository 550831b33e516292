//! Five long jobs of falling size, one after the other: what `fizz_buzz_threads` and `fizz_buzz_processes` do at once.

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
    (1..=5).for_each(|number| job(number, since));
    println!("all in {} ms", since.elapsed().as_millis());
}
