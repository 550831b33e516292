//! The word counter on nine threads, right by a semaphore with one permit.
//!
//! The semaphore makes one step of the reading and the writing. It holds no data, so the dict still has a lock of its
//! own, which makes it shareable: a semaphore with one permit is a lock without its best part. Take `Mutex`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use polypool::shared::Semaphore;

const CREATURES: [&str; 9] =
    ["くさ どく", "くさ どく", "くさ どく", "ほのお", "ほのお", "ほのお ひこう", "みず", "みず", "みず"];

fn main() -> anyhow::Result<()> {
    let counts = Mutex::new(BTreeMap::new());
    let one = Semaphore::new(1)?;
    thread::scope(|scope| {
        for types in CREATURES {
            let (counts, one) = (&counts, &one);
            scope.spawn(move || {
                let _permit = one.acquire();
                for word in types.split(' ') {
                    let count = *counts.lock().unwrap().get(word).unwrap_or(&0);
                    counts.lock().unwrap().insert(word, count + 1);
                }
            });
        }
    });
    for (word, count) in counts.into_inner().unwrap() {
        println!("{word} {count}");
    }
    Ok(())
}
