//! `multiprocessing.Pipe`: the word counter in processes, right: each receives the dict from a pipe and hands it on.

use std::collections::BTreeMap;

use polypool::shared::{Connection, pipe};
use polypool::{ExecutorExt, ProcessPool};

const CREATURES: [&str; 9] =
    ["くさ どく", "くさ どく", "くさ どく", "ほのお", "ほのお", "ほのお ひこう", "みず", "みず", "みず"];

type Counts = BTreeMap<String, u32>;

#[polypool::task]
fn count(types: String, counts: Connection<Counts>) {
    let mut dict = counts.recv().expect("main sends it");
    for word in types.split(' ') {
        *dict.entry(word.to_owned()).or_insert(0) += 1;
    }
    counts.send(&dict).expect("main receives it");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(3).build()?;
    let (here, there) = pipe::<Counts>()?;
    let tasks = CREATURES.map(|types| pool.submit(count { types: types.to_owned(), counts: there.clone() }));
    let mut counts = Counts::new();
    for task in tasks {
        here.send(&counts)?;
        counts = here.recv()?; // from whichever process took it
        drop(task);
    }
    for (word, count) in counts {
        println!("{word} {count}");
    }
    Ok(())
}
