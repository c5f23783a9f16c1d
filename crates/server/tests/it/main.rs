//! Tests of the server at its borders.
#![cfg(test)]

mod harness;
mod process;

mod canary;
mod cli;
mod config;
mod demo;
mod grants;
mod guide;
mod kill;
mod kill_logins;
mod listener;
mod loops;
mod malformed;
mod mini;
mod oauth;
mod openapi;
mod policy;
mod report;
mod tickets;
mod token;
mod users;
