//! The WeChat protocol, and nothing of the product.
//!
//! Wire types, error codes and what each asks for, signatures, and one HTTP client. It keeps no
//! state, decides nothing and starts no task. A call is one request; only where WeChat cannot have
//! noticed the first one, or where asking twice changes nothing there, a second follows
//! ([`Client`]).
//!
//! The modules, in reading order:
//! - `types`: names and secrets;
//! - `client`: [`Client`], one method an endpoint; `connect` underneath it, down to the socket, with
//!   `resolve` for names;
//! - `forward`: any other call, carried as a stream; `pool` keeps its connections, `scan` finds the
//!   errcode of its answer;
//! - `answer`: what each endpoint answers;
//! - `error`: [`Error`] by who is at fault, and the texts that WeChat sends along;
//! - `errcode`: the table of WeChat's return codes;
//! - `lenient`: from any bytes to an answer or an error, never a panic;
//! - `oauth`: scopes, and the addresses of the pages where users consent;
//! - `sign`: the signatures of JS-SDK pages and cards;
//! - `mini`: what a mini program signs and encrypts.

mod types;

mod answer;
mod client;
mod connect;
mod errcode;
mod error;
mod forward;
mod lenient;
mod mini;
mod oauth;
mod pool;
mod resolve;
mod scan;
mod sign;

#[doc(hidden)]
pub mod fuzzing;

pub use answer::{
    Follower, FollowerPage, IssuedGrant, IssuedTicket, IssuedToken, MiniSession, Quota, RateLimit,
    WebUser,
};
pub use client::Client;
pub use connect::{Config, ConfigError};
pub use errcode::{Action, ErrorCode, Kind, errors_markdown, find, table};
pub use error::{ApiError, Error, ProtocolError, TransportError, split_rid};
pub use forward::{BrokenOff, Download, Forward, Forwarded, Stream, Upload};
pub use mini::{Undecryptable, decrypt, is_signed};
pub use oauth::{
    AuthorizePage, InvalidRedirect, InvalidState, LoginState, RedirectUri, Scope, UnknownScope,
};
pub use resolve::Resolver;
pub use scan::{ErrcodeScan, Scanned};
pub use sign::{card_signature, jssdk_signature, sorted_sha1};
pub use types::{
    AppId, AppSecret, AuthCode, GlobalToken, InvalidAppId, Lang, Mode, OpenId, RefreshToken,
    SessionKey, Ticket, TicketKind, UnionId, UnknownLang, UnknownTicketKind, WebToken,
};
