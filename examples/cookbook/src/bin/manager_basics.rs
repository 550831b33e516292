//! `multiprocessing.Manager`: a dict, a list and a namespace in a server process, changed by a child.
//!
//! A dict has a type for its keys and one for its values; for keys of several types, write an enum. The server ends
//! with the manager, also when its process is killed.

use polypool::manager::{DictProxy, ListProxy, Manager, ManagerError, NamespaceProxy};
use polypool::{ExecutorExt, ProcessPool};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum Thing {
    Int(i64),
    Float(f64),
    Str(String),
    Null,
}

#[polypool::task]
fn child(dict: DictProxy<Thing, Thing>, list: ListProxy<u32>, namespace: NamespaceProxy) -> Result<(), String> {
    let change = || -> Result<(), ManagerError> {
        dict.insert(&Thing::Int(1), &Thing::Str("1".into())).wait()?;
        dict.insert(&Thing::Str("2".into()), &Thing::Int(2)).wait()?;
        dict.insert(&Thing::Float(0.25), &Thing::Null).wait()?;
        list.reverse().wait()?;
        namespace.set("x", &10).wait()?;
        namespace.set("y", &"hello".to_owned()).wait()
    };
    change().map_err(|error| error.to_string())
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let manager = Manager::start()?;
    let (dict, list, namespace) = (manager.dict().wait()?, manager.list().wait()?, manager.namespace().wait()?);
    list.extend(&(0..10).collect::<Vec<_>>()).wait()?;
    let task = child { dict: dict.clone(), list: list.clone(), namespace: namespace.clone() };
    ProcessPool::new()?.submit(task).wait()?.map_err(anyhow::Error::msg)?;
    println!("{:?}", dict.items().wait()?);
    println!("{:?}", list.items().wait()?);
    let (x, y) = (namespace.get::<i64>("x").wait()?, namespace.get::<String>("y").wait()?);
    println!("x={x:?} y={y:?}");
    Ok(())
}
