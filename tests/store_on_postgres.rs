//! The suites of every store, over PostgreSQL.

mod services;

#[path = "store_cards.rs"]
mod cards;
#[path = "store_conformance.rs"]
mod conformance;
#[path = "store_model.rs"]
mod model;
#[path = "store_ota.rs"]
mod ota;
#[path = "store_params.rs"]
mod params;
