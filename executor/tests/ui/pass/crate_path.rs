//! A crate that re-exports polypool says where it is.
#![forbid(unsafe_code)]
#![deny(warnings)]

mod toolbox {
    pub mod pools {
        pub use ::polypool as inside;
    }
}

// Hides the crate from every path that does not begin with `::`.
#[allow(unused)]
mod polypool {}

#[toolbox::pools::inside::task(crate = crate::toolbox::pools::inside, name = "bytes")]
fn bytes(data: Vec<u8>) -> Result<Vec<u8>, String> {
    Ok(data)
}

#[::polypool::task]
fn plain(n: u8) -> u8 {
    n
}

#[::polypool::main(crate = toolbox::pools::inside)]
async fn main() {
    assert_eq!(plain(1), 1);
    assert_eq!(bytes(vec![1]), Ok(vec![1]));
    let _ = (plain { n: 1 }, bytes { data: Vec::new() });
}
