//! The manager's side of `cargo bench -p polypool-ipc`: a dict in a server process, used by this process. The bench
//! builds this program, starts it for the rows that are the manager's, and compares them with Python's
//! (`executor/ipc/benches/shared_state`). By itself it does nothing.
//!
//! It stands here because the manager stands above `polypool-ipc`, whose bench has the table, and this package depends
//! on both.

#[path = "../../../executor/ipc/benches/shared_state/part.rs"]
mod part;

use std::io;
use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt, stream};
use polypool::manager::{DictProxy, Manager};

use part::{Contestant, Rounds, pin};

/// As many as the row says.
const IN_FLIGHT: usize = 32;

const CONTESTANTS: &[Contestant] = &[
    ("ours/manager-one-core", || one_by_one(0)),
    ("ours/manager-two-cores", || one_by_one(1)),
    ("ours/manager-in-flight", started),
    ("ours/manager-futures", futures),
];

fn main() {
    // The server is this program, too.
    polypool::init();
    match part::mine() {
        Some(name) => {
            let played = part::compete(&name, CONTESTANTS);
            part::finish(&name, played.unwrap_or_else(|| Err(io::Error::other("there is no such part"))));
        }
        None => println!("the manager is measured by cargo bench -p polypool-ipc"),
    }
}

type Dict = DictProxy<String, i64>;

/// A dict with one key, whose server is on the first or the second core. This process is on the first one.
fn dict(core: usize) -> io::Result<(Manager, Dict, String)> {
    pin(core)?;
    let manager = Manager::start().map_err(io::Error::other)?;
    pin(0)?;
    let dict = manager.dict().wait().map_err(io::Error::other)?;
    let key = "key".to_owned();
    dict.insert(&key, &0).wait().map_err(io::Error::other)?;
    Ok((manager, dict, key))
}

fn one_by_one(core: usize) -> io::Result<Rounds> {
    let (manager, dict, key) = dict(core)?;
    Ok(Box::new(move |count| {
        let _running = &manager;
        let start = Instant::now();
        for number in 0..count / 2 {
            dict.insert(&key, &(number as i64)).wait().map_err(io::Error::other)?;
            dict.get(&key).wait().map_err(io::Error::other)?;
        }
        Ok(start.elapsed())
    }))
}

/// Futures of one task, as a service has them.
fn futures() -> io::Result<Rounds> {
    let (manager, dict, key) = dict(1)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Ok(Box::new(move |count| {
        let _running = &manager;
        let start = Instant::now();
        runtime.block_on(async {
            let calls = stream::iter(0..count).map(|_| dict.get(&key)).buffer_unordered(IN_FLIGHT);
            calls
                .map_err(io::Error::other)
                .try_for_each(
                    |value| async move { value.map(drop).ok_or_else(|| io::Error::other("the key is not there")) },
                )
                .await
        })?;
        Ok(start.elapsed())
    }))
}

/// Started by a thread, which then waits for them.
fn started() -> io::Result<Rounds> {
    let (manager, dict, key) = dict(1)?;
    Ok(Box::new(move |count| {
        let _running = &manager;
        let start = Instant::now();
        let mut left = count as usize;
        while left > 0 {
            let calls: Vec<_> = (0..left.min(IN_FLIGHT)).map(|_| dict.get(&key).start()).collect();
            left -= calls.len();
            calls.into_iter().try_for_each(wait)?;
        }
        Ok(start.elapsed())
    }))
}

fn wait(call: polypool::manager::Call<Option<i64>>) -> io::Result<()> {
    match call.wait() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(io::Error::other("the key is not there")),
        Err(error) => Err(io::Error::other(error)),
    }
}
