#[polypool::main(flavor = "multi", worker_threads = 0, threads = 4, crate = "polypool", 7)]
async fn main() {}
