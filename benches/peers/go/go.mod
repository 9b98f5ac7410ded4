module chargegate/peer

go 1.21
