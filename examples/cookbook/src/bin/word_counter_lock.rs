//! The word counter on nine threads, right: the dict is inside of a lock, which is held from the reading to the
//! writing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

const CREATURES: [&str; 9] =
    ["くさ どく", "くさ どく", "くさ どく", "ほのお", "ほのお", "ほのお ひこう", "みず", "みず", "みず"];

fn main() {
    let counts = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for types in CREATURES {
            let counts = &counts;
            scope.spawn(move || {
                for word in types.split(' ') {
                    *counts.lock().unwrap().entry(word).or_insert(0) += 1;
                }
            });
        }
    });
    for (word, count) in counts.into_inner().unwrap() {
        println!("{word} {count}");
    }
}
