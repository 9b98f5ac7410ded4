//! The suites of every store, over PostgreSQL.

#![allow(clippy::duplicate_mod, reason = "each suite brings what it shares with the others, as in a binary of its own")]

mod services;

#[path = "store_binds.rs"]
mod binds;
#[path = "store_cards.rs"]
mod cards;
#[path = "store_conformance.rs"]
mod conformance;
#[path = "store_managed.rs"]
mod managed;
#[path = "store_model.rs"]
mod model;
#[path = "store_ota.rs"]
mod ota;
#[path = "store_params.rs"]
mod params;
#[path = "store_proof.rs"]
mod proof;
