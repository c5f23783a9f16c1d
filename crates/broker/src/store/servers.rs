//! The private servers that tests of this module talk to. `cargo xtask test` starts them.

/// The URL of PostgreSQL, as a user who may make databases.
pub(super) fn postgres() -> String {
    named_by("XINFU_TEST_POSTGRES")
}

/// The URL of Redis.
pub(super) fn redis() -> String {
    named_by("XINFU_TEST_REDIS")
}

#[expect(clippy::disallowed_methods, reason = "who starts the servers names them so")]
fn named_by(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("`cargo xtask test tests` starts the servers; or let {variable} name one by its URL")
    })
}
