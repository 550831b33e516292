//! `multiprocessing.Array("i", [1, 2, 3, 4])`: four processes square one element each.

use polypool::shared::Array;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn square(numbers: Array<i32>, index: usize) {
    numbers.with_element(index, |n| *n *= *n).expect("there is such an element");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(4).build()?;
    let numbers = Array::from_slice(&[1, 2, 3, 4])?;
    let tasks: Vec<_> = (0..4).map(|index| pool.submit(square { numbers: numbers.clone(), index })).collect();
    for task in tasks {
        task.wait()?;
    }
    println!("{:?}", numbers.to_vec()?);
    Ok(())
}
