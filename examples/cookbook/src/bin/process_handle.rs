//! `multiprocessing.Process`: `name`, `is_alive`, `join(timeout)`, `terminate`, `exitcode`, `current_process`,
//! `parent_process` and `active_children`.
//!
//! Every such process ends with the program, however that ends; in Python only a daemon does, and not if the program is
//! killed.

use std::time::Duration;

use polypool::shared::Event;
use polypool::{Process, active_children, current_process, parent_process};

#[polypool::task]
fn work(go_on: Event) -> String {
    go_on.wait();
    format!("{} has a parent: {}", current_process().name(), parent_process().is_some())
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let go_on = Event::new()?;
    let (p1, result) = Process::builder().name("p1").start(work { go_on: go_on.clone() })?;
    println!("{} is alive: {}, in time: {}", p1.name(), p1.is_alive(), p1.join_timeout(Duration::ZERO).is_ok());
    println!("children: {}", active_children().len());
    go_on.set();
    println!("{}", result.wait()?);
    println!("ended: {}, exit code {:?}", p1.join(), p1.exit_code());

    let (p2, result) = Process::start(work { go_on: Event::new()? })?; // waits for ever
    p2.terminate();
    println!("ended: {}, exit code {:?}, signal {:?}", p2.join(), p2.exit_code(), p2.exit_signal());
    println!("its result is an error: {}", result.wait().is_err());
    Ok(())
}
