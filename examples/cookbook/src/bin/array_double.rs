//! `multiprocessing.Array`, as a whole: a child doubles `[1, 2, 3]` under the lock.
//!
//! Under the lock the array is an ordinary `&mut [i32]`, in place. It has a type and a length; what doesn't fit doesn't
//! compile, or is an error (`ArrayError::OutOfRange`).

use polypool::shared::Array;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn double(numbers: Array<i32>) {
    let mut numbers = numbers.lock().expect("nobody has died with the lock");
    for n in numbers.iter_mut() {
        *n *= 2;
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let numbers = Array::from_slice(&[1, 2, 3])?;
    ProcessPool::new()?.submit(double { numbers: numbers.clone() }).wait()?;
    println!("{:?}", numbers.to_vec()?);
    Ok(())
}
