//! `d["n"] += 1` and `d["x"].append(1)` on a `Manager().dict()`: what goes wrong in Python, and how it goes here.
//!
//! There the first one reads and then writes, and loses what others wrote in between; the second one changes a copy,
//! and nothing else. Here neither compiles. A change is a function that the manager runs, in one step.

use polypool::manager::{DictProxy, Manager};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::update]
fn add(count: &mut Option<u64>, n: u64) {
    *count.get_or_insert(0) += n;
}

#[polypool::update]
fn append(list: &mut Option<Vec<u32>>, item: u32) {
    list.get_or_insert_default().push(item);
}

#[polypool::task]
fn child(index: u32, counts: DictProxy<String, u64>, lists: DictProxy<String, Vec<u32>>) {
    for _ in 0..100 {
        counts.update(&"n".to_owned(), add { n: 1 }).wait().expect("the manager runs");
    }
    lists.update(&"x".to_owned(), append { item: index }).wait().expect("the manager runs");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let manager = Manager::start()?;
    let (counts, lists) = (manager.dict().wait()?, manager.dict().wait()?);
    let pool = ProcessPool::builder().workers(2).build()?;
    let tasks = [0, 1].map(|index| pool.submit(child { index, counts: counts.clone(), lists: lists.clone() }));
    for task in tasks {
        task.wait()?;
    }
    println!("n: {:?}", counts.get(&"n".to_owned()).wait()?);
    println!("x has {} items", lists.get(&"x".to_owned()).wait()?.map_or(0, |list| list.len()));
    Ok(())
}
