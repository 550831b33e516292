//! `multiprocessing.Value("i")` and `Array("d")`: a child adds one to the number and negates the array.

use polypool::shared::{Array, Value};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn change(num: Value<i32>, numbers: Array<f64>) {
    num.with(|n| *n += 1);
    numbers.with(|numbers| numbers.iter_mut().for_each(|x| *x = -*x)).expect("nobody has died with the lock");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let (num, numbers) = (Value::new(0)?, Array::from_slice(&[0.1, 0.2, 0.3])?);
    ProcessPool::new()?.submit(change { num: num.clone(), numbers: numbers.clone() }).wait()?;
    println!("{}", num.get());
    println!("{:?}", numbers.to_vec()?);
    Ok(())
}
