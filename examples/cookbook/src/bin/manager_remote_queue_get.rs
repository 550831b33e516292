//! `BaseManager.register("get_queue")` and `connect()`: gets a message from the queue of `manager_remote_queue_server`,
//! and waits for one if there is none.

use polypool::manager::{Address, AuthKey, ClientSecurity, Manager, QueueProxy, set_security};

fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:50000".into());
    let address: Address = address.parse()?;
    set_security(&address, ClientSecurity::new().key(AuthKey::from_env("POLYPOOL_KEY")?));
    let queue: QueueProxy<String> = Manager::connect(&address)?.get("get_queue").wait()?;
    println!("{}", queue.get().wait()?);
    Ok(())
}
