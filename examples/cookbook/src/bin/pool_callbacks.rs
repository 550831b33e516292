//! `apply_async(callback, error_callback)`, `starmap`, `imap` and `imap_unordered` of `multiprocessing.Pool`.

use polypool::Pool;

#[polypool::task]
fn divide(a: i64, b: i64) -> i64 {
    a / b
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = Pool::processes(2)?;
    for b in [2, 0] {
        let result = pool.apply_async_with(
            divide { a: 10, b },
            |quotient| println!("callback: {quotient}"),
            |_| println!("error callback: 10 / 0"),
        );
        let _ = result.wait();
    }
    println!("starmap: {:?}", pool.starmap(|(a, b)| divide { a, b }, [(6, 2), (6, 3)])?);
    let ordered = pool.imap(|a| divide { a, b: 1 }, 1..=3).collect::<Result<Vec<_>, _>>()?;
    println!("imap: {ordered:?}");
    let mut unordered = pool.imap_unordered(|a| divide { a, b: 1 }, 1..=3).collect::<Result<Vec<_>, _>>()?;
    unordered.sort();
    println!("imap_unordered, sorted: {unordered:?}");
    Ok(())
}
