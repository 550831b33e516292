//! `BaseManager.register("get_queue")` and `connect()`: puts a message into the queue of `manager_remote_queue_server`.
//!
//! A key that isn't the server's is refused before anything is decoded.

use polypool::manager::{Address, AuthKey, ClientSecurity, Manager, QueueProxy, set_security};

fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "tcp://127.0.0.1:50000".into());
    let address: Address = address.parse()?;
    set_security(&address, ClientSecurity::new().key(AuthKey::from_env("POLYPOOL_KEY")?));
    let queue: QueueProxy<String> = Manager::connect(&address)?.get("get_queue").wait()?;
    queue.put(&"hello".to_owned()).wait()?;
    Ok(())
}
