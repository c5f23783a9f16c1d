//! What an SDK does whose base URL is ours and whose AppSecret is a client key.

use std::cell::RefCell;

use crate::harness::{APP, Answer, World};

/// An SDK of one app.
pub(crate) struct Sdk<'a> {
    world: &'a World,
    pub(crate) key: String,
    token: RefCell<String>,
}

impl<'a> Sdk<'a> {
    /// One with the key that may do everything; it has fetched its token.
    pub(crate) async fn of(world: &'a World) -> Self {
        Self::with_key(world, &world.key).await
    }

    /// One with a key of its own; it has fetched its token.
    pub(crate) async fn with_key(world: &'a World, key: &str) -> Self {
        let sdk = Self { world, key: key.to_owned(), token: RefCell::default() };
        let answer = sdk.fetch().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let token = answer.json()["access_token"].as_str().map(str::to_owned);
        *sdk.token.borrow_mut() = token.unwrap_or_else(|| panic!("no token: {answer:?}"));
        sdk
    }

    pub(crate) fn token(&self) -> String {
        self.token.borrow().clone()
    }

    /// Asks for a token.
    pub(crate) async fn fetch(&self) -> Answer {
        let key = &self.key;
        let path = format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={key}");
        self.world.ask("GET", &path, None, None).await
    }

    /// Has this token from now on.
    pub(crate) fn take(&self, token: &str) {
        *self.token.borrow_mut() = token.to_owned();
    }

    /// Makes a call with its token; `query` begins with `&` unless it is empty.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        query: &str,
        body: Option<&str>,
    ) -> Answer {
        let token = self.token();
        self.world.ask(method, &format!("{path}?access_token={token}{query}"), None, body).await
    }
}
