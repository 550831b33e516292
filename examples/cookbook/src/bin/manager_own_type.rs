//! `BaseManager.register("Stock", Stock)`: a value of a type of one's own lives in the manager's process, and others
//! call its methods.
//!
//! The proxy is written by `#[managed]`, with the same methods and their types. Each call is one step: nobody comes
//! between `take`'s look and its change.

use polypool::manager::Manager;
use polypool::{ExecutorExt, ProcessPool};

pub(crate) struct Stock {
    left: u32,
}

#[polypool::managed]
impl Stock {
    pub(crate) fn new(left: u32) -> Self {
        Stock { left }
    }

    pub(crate) fn take(&mut self, n: u32) -> bool {
        let left = self.left.checked_sub(n);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    pub(crate) fn left(&self) -> u32 {
        self.left
    }
}

#[polypool::task]
fn customer(stock: StockProxy, n: u32) -> bool {
    stock.take(n).wait().expect("the manager runs")
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let manager = Manager::start()?;
    let stock = StockProxy::new(&manager, 10).wait()?;
    let pool = ProcessPool::builder().workers(4).build()?;
    let customers = [3; 4].map(|n| pool.submit(customer { stock: stock.clone(), n }));
    let served = customers.into_iter().map(|customer| customer.wait()).collect::<Result<Vec<_>, _>>()?;
    println!("served: {}, left: {}", served.iter().filter(|was_served| **was_served).count(), stock.left().wait()?);
    Ok(())
}
