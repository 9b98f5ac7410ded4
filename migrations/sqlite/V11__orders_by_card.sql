-- No query asks for the orders of a card: what a card paid is in card_transactions. The index cost a page of its own with nearly every
-- record of a card that charged without the gateway.
DROP INDEX orders_card;
