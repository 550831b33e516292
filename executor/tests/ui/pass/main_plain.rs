//! A plain `main` with inner attributes, items and a result.
#![forbid(unsafe_code)]
#![deny(warnings)]

#[polypool::main]
pub fn main() -> Result<(), std::num::ParseIntError> {
    #![allow(non_snake_case)]
    use std::str::FromStr;
    const TEXT: &str = "12";

    let Number = u8::from_str(TEXT)?;
    if Number == 12 {
        return Ok(());
    }
    panic!("{Number} is not 12")
}
