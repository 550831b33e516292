//! `Pool(initializer, initargs, maxtasksperchild)`: what each worker does before its first task, `os.setpriority` for
//! one, and after how many tasks a fresh process takes its place.
//!
//! An initializer is a task, whose arguments travel. If it fails, the pool is broken and everything that waits says
//! why; Python's `Pool` starts workers that fail, for ever.

use std::sync::OnceLock;

use polypool::{Pool, ProcessPool};
use rustix::process::{getpriority_process, setpriority_process};

static GREETING: OnceLock<String> = OnceLock::new();

#[polypool::task]
fn prepare(greeting: String) -> Result<(), String> {
    setpriority_process(None, 19).map_err(|error| error.to_string())?; // everything else comes first
    GREETING.set(greeting)
}

#[polypool::task]
fn greet(name: String) -> (String, u32) {
    let priority = getpriority_process(None).expect("a process has a priority");
    (format!("{}, {name}! (priority {priority})", GREETING.wait()), std::process::id())
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let initializer = prepare { greeting: "hello".into() };
    let processes = ProcessPool::builder().workers(1).initializer(initializer).max_tasks_per_worker(1).build()?;
    let pool = Pool::over(processes);
    let (ann, first) = pool.apply(greet { name: "Ann".into() })?;
    let (bob, second) = pool.apply(greet { name: "Bob".into() })?;
    println!("{ann}\n{bob}\nanother process: {}", first != second);
    Ok(())
}
