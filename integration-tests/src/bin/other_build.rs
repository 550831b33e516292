//! A worker executable in which a task has another signature than in the program that starts it.
#![forbid(unsafe_code)]

#[polypool::task(name = "greet")]
fn greet(name: String) -> String {
    format!("hello {name}")
}

#[polypool::main]
fn main() {
    // The linker keeps the tasks of a library that is used.
    println!("{} {}", greet("you".to_owned()), integration_tests::tasks::double(1));
}
