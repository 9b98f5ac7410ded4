-- Accounts of cards. `balance_cent` is the sum of the balance changes in card_balance_logs, `held_cent` that of the held changes
-- and of all open holds of orders. The checks hold in every statement: no account is ever below zero.
CREATE TABLE cards (
    card_no      TEXT PRIMARY KEY,
    -- Account state of AP3000; 0 may charge.
    state        INTEGER NOT NULL CHECK (state BETWEEN 0 AND 18),
    -- Name in the configuration; NULL: the default tariff.
    tariff       TEXT,
    -- A monthly card, and when its plan ends.
    expires_at   INTEGER,
    balance_cent INTEGER NOT NULL DEFAULT 0 CHECK (balance_cent BETWEEN 0 AND 4294967295),
    held_cent    INTEGER NOT NULL DEFAULT 0 CHECK (held_cent BETWEEN 0 AND balance_cent),
    -- Counter of the card's events.
    sequence_no  INTEGER NOT NULL DEFAULT 0,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX cards_state ON cards (state);

CREATE TABLE card_transactions (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    card_no      TEXT NOT NULL REFERENCES cards (card_no),
    kind         TEXT NOT NULL CHECK (kind IN ('recharge', 'charge')),
    order_no     TEXT REFERENCES orders (order_no),
    amount_cent  INTEGER NOT NULL,
    price_cent   INTEGER NOT NULL,
    unpaid_cent  INTEGER NOT NULL,
    balance_cent INTEGER NOT NULL,
    reference    TEXT,
    request_id   TEXT,
    at           INTEGER NOT NULL
) STRICT;
CREATE INDEX card_transactions_card ON card_transactions (card_no, id DESC);
-- An order is paid for once.
CREATE UNIQUE INDEX card_transactions_order ON card_transactions (order_no) WHERE order_no IS NOT NULL;

-- Every change of an account, with what it left.
CREATE TABLE card_balance_logs (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    card_no        TEXT NOT NULL REFERENCES cards (card_no),
    kind           TEXT NOT NULL CHECK (kind IN ('recharge', 'hold', 'release', 'charge')),
    order_no       TEXT REFERENCES orders (order_no),
    transaction_id INTEGER REFERENCES card_transactions (id),
    balance_change INTEGER NOT NULL,
    held_change    INTEGER NOT NULL,
    balance_cent   INTEGER NOT NULL,
    held_cent      INTEGER NOT NULL,
    at             INTEGER NOT NULL
) STRICT;
CREATE INDEX card_balance_logs_card ON card_balance_logs (card_no, id DESC);

ALTER TABLE orders ADD COLUMN card_no TEXT;
-- As agreed when it was ordered: JSON. NULL: no price.
ALTER TABLE orders ADD COLUMN tariff TEXT;
-- NULL: no card, or one whose account is not kept here.
ALTER TABLE orders ADD COLUMN hold_cent INTEGER CHECK (hold_cent >= 0);
ALTER TABLE orders ADD COLUMN hold_open INTEGER NOT NULL DEFAULT 0;
ALTER TABLE orders ADD COLUMN price_cent INTEGER;
ALTER TABLE orders ADD COLUMN charged_cent INTEGER;
CREATE INDEX orders_card ON orders (card_no, created_at DESC) WHERE card_no IS NOT NULL;
CREATE INDEX orders_hold_open ON orders (end_time) WHERE hold_open = 1;
