//! Counts the types of nine creatures in a dict, one after the other: the measure for the other word counters.

use std::collections::BTreeMap;

const CREATURES: [&str; 9] =
    ["くさ どく", "くさ どく", "くさ どく", "ほのお", "ほのお", "ほのお ひこう", "みず", "みず", "みず"];

fn main() {
    let mut counts = BTreeMap::new();
    for types in CREATURES {
        for word in types.split(' ') {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    for (word, count) in counts {
        println!("{word} {count}");
    }
}
