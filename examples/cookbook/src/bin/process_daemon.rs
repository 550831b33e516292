//! `multiprocessing.Process(daemon=True)`: what becomes of children at the end of the program.
//!
//! `join_children` does what Python does by itself: it waits for all, but terminates the daemons. Without it, whoever
//! is alive is killed with the program.

use polypool::{Process, active_children, join_children};

#[polypool::task]
fn save() {
    println!("saved");
}

#[polypool::task]
fn watch() {
    loop {
        std::thread::park();
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let (saving, _) = Process::start(save {})?;
    let (watching, _) = Process::builder().daemon(true).start(watch {})?;
    join_children();
    println!("save: exit code {:?}", saving.exit_code());
    println!("watch: signal {:?}", watching.exit_signal());
    println!("{} are alive", active_children().len());
    Ok(())
}
