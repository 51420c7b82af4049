//! The street door: arguments and exit codes, nothing else.

fn main() -> std::process::ExitCode {
    tollgate::cli::main()
}
