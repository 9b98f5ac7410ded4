module example.com/chargegate-client

go 1.19
