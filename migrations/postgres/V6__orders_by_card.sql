-- No query asks for the orders of a card: what a card paid is in card_transactions.
DROP INDEX orders_card;
