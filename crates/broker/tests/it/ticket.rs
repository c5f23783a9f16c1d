//! Tickets: kept once asked for, fetched hourly, dropped when idle.

use broker::app::Issuer;
use sim::{Fault, FaultKind};
use wechat::{Ticket, TicketKind, jssdk_signature};

use crate::harness::{APP, Backend, World, read, secs};

const PATH: &str = "/cgi-bin/ticket/getticket";

#[tokio::test(start_paused = true)]
async fn a_ticket_is_fetched_when_asked_for_and_then_hourly() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    world.pass(secs(7200)).await;
    assert_eq!(world.calls(PATH), 0, "nobody has asked");
    for _ in 0..10 * 6 {
        let view = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
        assert!(world.sim.ticket_works(APP, view.ticket.expose()));
        world.pass(secs(600)).await;
    }
    assert!((10..=11).contains(&world.calls(PATH)), "{}", world.calls(PATH));
}

#[tokio::test(start_paused = true)]
async fn an_idle_ticket_is_dropped_after_a_day() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    replica.broker.ticket(&entry, TicketKind::WxCard).await.unwrap();
    world.pass(secs(26 * 3600)).await;
    let calls = world.calls(PATH);
    assert!((23..=26).contains(&calls), "{calls}");
    world.pass(secs(48 * 3600)).await;
    assert_eq!(world.calls(PATH), calls);
    replica.broker.ticket(&entry, TicketKind::WxCard).await.unwrap();
    assert_eq!(world.calls(PATH), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_heals_a_dead_token_on_its_way() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    read(&replica.broker, &entry).await;
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    let view = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    assert!(world.sim.ticket_works(APP, view.ticket.expose()));
}

#[tokio::test(start_paused = true)]
async fn an_old_ticket_is_served_while_fetching_fails() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let first = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    let away = FaultKind::Errcode { code: -1, ip: None, message: None };
    world.sim.set_fault(Fault::new(away).on(PATH));
    world.pass(secs(7000)).await;
    let later = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    assert_eq!(later.generation, first.generation);
}

#[tokio::test(start_paused = true)]
async fn pages_are_signed_with_the_current_ticket() {
    let (_world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let url = "https://shop.example/page?a=1#part";
    let config = replica.broker.jssdk_config(&entry, url).await.unwrap();
    let ticket = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap().ticket;
    let expected = jssdk_signature(
        &Ticket::new(ticket.expose()),
        &config.nonce,
        config.timestamp,
        "https://shop.example/page?a=1",
    );
    assert_eq!(config.signature, expected);
    assert!(config.nonce.len() >= 12 && config.nonce.bytes().all(|b| b.is_ascii_alphanumeric()));
}
