#!/bin/sh
# Makes the app's identity a user of the database: it reads, writes, and changes the schema when a new version starts.
# Needs sqlcmd (the Go one, "winget/brew install sqlcmd"), signed in as the database's Entra administrator.
set -eu
: "${SQL_SERVER:?run by azd, or set SQL_SERVER, SQL_DATABASE and APP_IDENTITY_NAME}" "${SQL_DATABASE:?}" "${APP_IDENTITY_NAME:?}"
sqlcmd -S "$SQL_SERVER" -d "$SQL_DATABASE" --authentication-method ActiveDirectoryDefault -b -v identity="$APP_IDENTITY_NAME" -Q "
IF NOT EXISTS (SELECT 1 FROM sys.database_principals WHERE name = N'\$(identity)')
    CREATE USER [\$(identity)] FROM EXTERNAL PROVIDER;
IF EXISTS (SELECT 1 FROM sys.databases WHERE name = DB_NAME() AND is_read_committed_snapshot_on = 0)
    ALTER DATABASE CURRENT SET READ_COMMITTED_SNAPSHOT ON WITH ROLLBACK IMMEDIATE;
ALTER ROLE db_datareader ADD MEMBER [\$(identity)];
ALTER ROLE db_datawriter ADD MEMBER [\$(identity)];
ALTER ROLE db_ddladmin ADD MEMBER [\$(identity)];
"
echo "The app's identity is a user of the database $SQL_DATABASE."
