//! `BaseManager.get_server().serve_forever()`: a server with a queue that other programs use over TCP.
//!
//! `manager_remote_queue_put ADDRESS` and `manager_remote_queue_get ADDRESS` are its clients. All three take the key
//! from the environment: `POLYPOOL_KEY="at least sixteen bytes"`. `Ctrl-C` ends it.

use polypool::manager::{AuthKey, BindTo, Manager};

fn main() -> anyhow::Result<()> {
    let key = AuthKey::from_env("POLYPOOL_KEY")?;
    let port = std::env::args().nth(1).map_or(Ok(50_000), |port| port.parse())?;
    let bind = BindTo::Tcp { host: "127.0.0.1".into(), port, tls: false };
    Manager::builder().bind(bind).auth_key(key).serve_forever(|manager| {
        let _ = manager.named("get_queue").queue::<String>().wait()?;
        println!("{}", manager.address());
        Ok(())
    })?;
    Ok(())
}
