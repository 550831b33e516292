//! The word counter on nine threads, wrong: each reads the count of a word, waits, and writes it back plus one.
//!
//! A dict that threads change without a lock doesn't compile. But a lock that is given back between the reading and the
//! writing compiles, and loses updates as Python does: every word ends with 1. `word_counter_lock` is right.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};
use std::thread;

const CREATURES: [&str; 9] =
    ["くさ どく", "くさ どく", "くさ どく", "ほのお", "ほのお", "ほのお ひこう", "みず", "みず", "みず"];

fn main() {
    let counts = Mutex::new(BTreeMap::new());
    let all_have_read = Barrier::new(CREATURES.len());
    thread::scope(|scope| {
        for types in CREATURES {
            let (counts, all_have_read) = (&counts, &all_have_read);
            scope.spawn(move || {
                let words: Vec<_> = types.split(' ').collect();
                let read: Vec<_> = words.iter().map(|word| *counts.lock().unwrap().get(word).unwrap_or(&0)).collect();
                all_have_read.wait(); // Python sleeps here
                for (word, count) in words.into_iter().zip(read) {
                    counts.lock().unwrap().insert(word, count + 1);
                }
            });
        }
    });
    for (word, count) in counts.into_inner().unwrap() {
        println!("{word} {count}");
    }
}
