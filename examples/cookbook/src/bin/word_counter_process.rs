//! The word counter in processes, wrong: each process counts in a dict of its own, and that of `main` stays empty.
//!
//! A `static` isn't shared, and neither is an argument, which is a copy. What is to come back is returned; what is to
//! be shared is a handle (`polypool::shared`, `polypool::manager`) or goes through a pipe (`word_counter_pipe`).

use std::collections::BTreeMap;
use std::sync::Mutex;

use polypool::{ExecutorExt, ProcessPool};

const CREATURES: [&str; 9] =
    ["くさ どく", "くさ どく", "くさ どく", "ほのお", "ほのお", "ほのお ひこう", "みず", "みず", "みず"];

static COUNTS: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// Says how many words it has counted.
#[polypool::task]
fn count(types: String) -> usize {
    let mut counts = COUNTS.lock().unwrap();
    types.split(' ').map(|word| *counts.entry(word.to_owned()).or_insert(0) += 1).count()
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(3).build()?;
    let tasks = CREATURES.map(|types| pool.submit(count { types: types.to_owned() }));
    let counted = tasks.into_iter().map(|task| task.wait()).sum::<Result<usize, _>>()?;
    println!("the processes have counted {counted} words");
    println!("main: {:?}", COUNTS.lock().unwrap());
    Ok(())
}
